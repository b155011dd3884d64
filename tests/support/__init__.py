"""Real servers and proxies that tests start: shared by all test packages."""
