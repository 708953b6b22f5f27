"""Many runs: several sizes, seeds and schedules, and one report of all."""
