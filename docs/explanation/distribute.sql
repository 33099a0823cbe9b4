-- Spread the tables of a history store over the hosts of a Citus cluster.
-- Run it once on the coordinator, as the owner of the tables, after `letopis db upgrade --partitions 128`
-- and before the first delivery:  psql --single-transaction -v ON_ERROR_STOP=1 -f distribute.sql

-- Two to four for each core of the hosts that are planned; a quarter of the partitions, or fewer.
SET citus.shard_count = 32;

DO $$ BEGIN
  -- Otherwise a new connection of the driver waits two seconds for each type of an array.
  EXECUTE format('ALTER DATABASE %I SET citus.override_table_visibility = off', current_database());
  -- Otherwise a snapshot of one host is several, one for each connection to it.
  EXECUTE format('ALTER DATABASE %I SET citus.max_adaptive_executor_pool_size = 1', current_database());
END $$;

-- Few rows, which deliveries read: every host holds a copy.
SELECT create_reference_table('letopis_version');
SELECT create_reference_table('letopis_store');
SELECT create_reference_table('letopis_origins');
SELECT create_reference_table('letopis_erasures');
SELECT create_reference_table('letopis_holds');

-- Rows of one partition lie together on one host.
SELECT create_distributed_table('letopis_log_heads', 'partition', colocate_with => 'none');
SELECT create_distributed_table('letopis_lanes', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_conversations', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_events', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_messages', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_owners', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_checkpoints', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_search', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_tasks', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_records', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_record_parts', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_record_tags', 'partition', colocate_with => 'letopis_log_heads');
SELECT create_distributed_table('letopis_record_ledger', 'partition', colocate_with => 'letopis_log_heads');
