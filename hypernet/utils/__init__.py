"""Small general tools."""
