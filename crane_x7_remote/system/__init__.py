"""What processes of ours need from the operating system."""
