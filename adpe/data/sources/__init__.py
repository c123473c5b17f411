"""Images in folders and archives, decoded by the one reader."""
