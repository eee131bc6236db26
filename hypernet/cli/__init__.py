"""What the scripts share: command lines, their checks, and how errors reach the user."""
