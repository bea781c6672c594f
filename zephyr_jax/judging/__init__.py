"""Teachers, students and judges: prompts and parsers, and one protocol for endpoints and models in this process."""
