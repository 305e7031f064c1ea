"""Where things are kept: the ClickHouse schema and client, the embedded engine, the registry and the SQL tables."""
