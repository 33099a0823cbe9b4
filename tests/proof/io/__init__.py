"""Let the disk fail with errors, no space, no speed, no right to write, no file; nothing acknowledged is lost."""
