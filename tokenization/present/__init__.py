"""Plans and samples for people: terminal tables and pictures. Nothing else in the package draws or prints."""
