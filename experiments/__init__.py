"""absl binaries: flags to a config to one call."""
