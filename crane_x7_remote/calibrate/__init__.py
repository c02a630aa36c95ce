"""The camera's lens and pose, from images of a printed board."""
