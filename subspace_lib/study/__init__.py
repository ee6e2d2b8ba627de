"""The study: which runs it is made of, their records, and what they say."""
