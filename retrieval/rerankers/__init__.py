"""Models that read query and passage together: how they are asked, loaded, and made to score pairs."""
