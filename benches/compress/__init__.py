"""What `octavo compress` keeps: the embedded model distilled, and Gemma 3 270M with an English vocabulary."""
