"""What a device keeps of the link: downloads on their way in, its one update on its way out."""
