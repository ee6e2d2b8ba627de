"""The book: executed, built, drawn and printed."""
