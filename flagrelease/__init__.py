"""DeepSeek-V4 for every chip: convert, prove and publish one release per platform."""
