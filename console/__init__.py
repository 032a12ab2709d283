"""The operator's command, `async-email`."""
