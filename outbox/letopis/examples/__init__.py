"""Programs that show a history at work; `letopis demo` plays one."""
