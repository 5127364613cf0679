"""How the embedded model is made: data generators, tokenizer, model, optimizer, training, export, evaluation.

Nothing here is imported by ``octavo`` at run time. README.md in this folder has the command to reproduce it.
"""
