"""What each command does: one screen of loop per stage, no maths and no file formats."""
