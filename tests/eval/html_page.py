"""A page as a test reads it."""

import base64
import hashlib
import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, addresses, visible text and scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text, self.scripts, self.data, self.policy = [], [], [], [], {}, ""
        self._script = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self._script = given if tag == "script" else None
        self.policy = given["content"] if given.get("http-equiv") == "Content-Security-Policy" else self.policy
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.text.append(data)
        elif self._script.get("type") == "application/json":
            self.data[self._script["id"]] = data
        else:
            self.scripts.append(data)

    @property
    def allowed_scripts(self):
        """Whether the page's policy allows its own scripts, by their hashes, and nothing else."""
        hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in self.scripts]
        policy = self.policy.partition("script-src ")[2]
        return policy == (" ".join(f"'sha256-{one}'" for one in hashes) or "'none'")


def without_scripts(source):
    """The source of a page without what its scripts hold."""
    return re.sub(r"(<script[^>]*>).*?</script>", r"\1</script>", source, flags=re.DOTALL)
