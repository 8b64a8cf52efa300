"""What lies on people's disks, as listings: one file for each way in which it lies there."""
