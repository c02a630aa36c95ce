"""ROS bags, without ROS."""
