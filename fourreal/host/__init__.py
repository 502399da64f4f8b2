"""What training needs of its machine: processes, signals, folders, a watchdog."""
