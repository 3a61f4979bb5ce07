"""Convolutions on processors, computed faster than directly."""
