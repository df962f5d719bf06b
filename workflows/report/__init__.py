"""The data of the report page: reads and packs run folders."""
