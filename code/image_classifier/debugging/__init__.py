"""What a job observes of itself, and the rules that judge it: in the job, on this machine, and over saved output."""
