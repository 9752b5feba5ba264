"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: the message names the culprit, its value, what is allowed and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 1.
    """
