"""What the page of runs is made from: run folders, read and packed."""
