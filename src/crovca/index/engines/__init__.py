"""Engines: how the nearest codes are found. One file each, all behind ``base.Engine``."""
