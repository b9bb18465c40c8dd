"""Examples as a person sees them: pictures, words, text, rows of features."""
