"""Where instances go, and which of them: pure, and the same for whoever asks. The manager decides by it, and commands
explain by it.
"""
