"""From files on disk to uint8 clips."""
