"""What the package's work costs beside that of others: measured side by side, in one process."""
