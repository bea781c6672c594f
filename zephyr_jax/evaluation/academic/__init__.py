"""Academic tasks from local files by the rules of lm-evaluation-harness 0.4.13: what is asked, and how it is scored."""
