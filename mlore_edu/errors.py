"""The one exception a reader is meant to see."""


class UserError(Exception):
    """Something the user can put right: one clear sentence that ends with the remedy.

    The command line prints the sentence alone and exits with code 2; a notebook shows it as any exception.
    """
