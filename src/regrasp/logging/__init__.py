"""What a run shows and writes about itself: metrics, progress, video, report."""
