"""The regular expressions with which published tokenizers split text; others could take forever."""

SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LETTERS = r'\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}'
SMALL = r'\p{Ll}\p{Lm}\p{Lo}\p{M}'
SPACES = r'\s*[\r\n]+|\s+(?!\S)|\s+'
WORDS = r"""[^\r\n\p{L}\p{N}]?[""" + LETTERS + r']*[' + SMALL + r']+'
CAPITALS = r'|[^\r\n\p{L}\p{N}]?[' + LETTERS + r']+[' + SMALL + r']*'
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _llama_3(digits: str) -> str:
    return SHORT + r'|[^\r\n\p{L}\p{N}]?\p{L}+|' + digits + r'| ?[^\s\p{L}\p{N}]+[\r\n]*|' + SPACES


PATTERNS = {
    GPT_2,
    _llama_3(r'\p{N}{1,3}'),  # Llama 3, GPT-4
    _llama_3(r'\p{N}'),  # Qwen 2
    SHORT + r'|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|' + SPACES,  # Qwen 3.5
    WORDS + CAPITALS + r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|' + SPACES,  # Mistral
    f'{WORDS}{SHORT}?{CAPITALS}{SHORT}?' + r'|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|' + SPACES,  # GPT-4o
    *(r' ?\p{L}+', r'\p{N}{1,3}', r'\p{N}', r'\d', r'\s', r'\s+', r'[\r\n]'),  # parts of some
}
