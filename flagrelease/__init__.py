"""DeepSeek-V4 for every chip: convert, prove and publish one release per platform."""

__version__ = "0.1.0"
