"""Episodes in and out: demonstrations, LeRobot, TFRecord/RLDS, rosbags, statistics, batches."""
