"""Policy backends: each one a file, all behind ``sleuth.protocols.Policy``."""
