"""Recording: simulated robot episodes made by scripted experts and written as LeRobot v3.0 datasets."""
