"""Secrets and personal words that are planted, and the search for them in what is said."""

PASSWORD = "pa55w0rd-of-the-store"
OTHER = "sec0nd-secret-in-an-option"
TOKEN = "t0ken-of-the-channel"
BODY = "tell-nobody: my card is 4111-1111"
NAME = "an-eyes-only-name"
SECRETS = (PASSWORD, OTHER, TOKEN, BODY, "4111", NAME)

RTL, ESC, CSI, LINE = "‮", "\x1b", "\x9b", "\u2028"
HOSTILE = f"poison{RTL}{LINE}user ERROR forged"  # the worst that an id may hold; control characters are refused

DSNS = {
    "user and password": f"postgresql://bot:{PASSWORD}@127.0.0.1:1/h",
    "percent-encoded": f"postgresql://bot:{PASSWORD.replace('-', '%2D')}@127.0.0.1:1/h",
    "no user": f"postgresql://:{PASSWORD}@127.0.0.1:1/h",
    "an option": f"postgresql://127.0.0.1:1/h?user=bot&password={PASSWORD}",
    "the key of a certificate": f"postgresql://bot:{PASSWORD}@127.0.0.1:1/h?sslpassword={OTHER}",
    "an option that is not known": f"postgresql://bot:{PASSWORD}@127.0.0.1:1/h?passphrase={OTHER}",
    "an option given twice": f"postgresql://bot:{PASSWORD}@127.0.0.1:1/h?password={OTHER}",
    "MariaDB": f"mysql://bot:{PASSWORD}@127.0.0.1:1/h",
    "MariaDB's own option": f"mariadb://127.0.0.1:1/h?user=bot&passwd={PASSWORD}",
    "a slash in it": f"postgresql://bot:a/{PASSWORD}@127.0.0.1:1/h",
    "a colon in it": f"postgresql://bot:a:{PASSWORD}@127.0.0.1:1/h",
    "an at sign in it": f"postgresql://bot:a@{PASSWORD}@127.0.0.1:1/h",
    "an at sign and a slash in it": f"postgresql://bot:a@b/{PASSWORD}@127.0.0.1:1/h",
    "an at sign and a question mark in it": f"postgresql://bot:a@b/h?{PASSWORD}@127.0.0.1:1/h=1",
    "a bracket in it": f"postgresql://bot:[{PASSWORD}@127.0.0.1:1/h",
    "a port that is none": f"postgresql://bot:{PASSWORD}@127.0.0.1:{OTHER}/h",
    "no kind of database": f"oracle://bot:{PASSWORD}@127.0.0.1:1/h",
    "no kind at all": f"bot:{PASSWORD}@127.0.0.1:1/h",
    "one slash": f"postgresql:/bot:{PASSWORD}@127.0.0.1:1/h",
    "no database": f"postgresql://bot:{PASSWORD}@127.0.0.1:1",
    "SQLite with a server": f"sqlite://bot:{PASSWORD}@h/x.db",
}


def leaks(text: str, secrets: tuple[str, ...] = SECRETS) -> list[str]:
    """The secrets and the bytes that could forge a line or move a cursor, found in a text."""
    found = [secret for secret in secrets if secret in text]
    return found + [ascii(sign) for sign in (RTL, ESC, CSI, LINE, "\x00", "\x07") if sign in text]
