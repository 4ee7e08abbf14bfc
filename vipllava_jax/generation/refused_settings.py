"""Names that are not settings, such as those of other libraries, and what to do instead."""

import difflib
from collections.abc import Sequence

from vipllava_jax.messages import brief

_COUNTS = '{} counts the tokens of the answer alone'
_BEAM_SEARCH = 'beam search is that of num_beams, length_penalty and early_stopping'
_REPORTED = 'with logprobs, a Generation holds logprobs and scores'
_LOGITS = 'processors holds functions (ids BS, lengths B, logits BV) -> logits BV'

REFUSED = {
    # without a counterpart
    'guidance_scale': 'guidance compares the answer with that to a second prompt, and the model was not '
    'trained to answer without a question',
    'forced_bos_token_id': 'it replaces the first token of a decoder that starts from nothing; here the '
    'answer continues the prompt: end the prompt with the token',
    'forced_decoder_ids': 'the answer continues the prompt: end the prompt with the tokens',
    'token_healing': 'the prompt is used as it is: do not end it within a word',
    'dola_layers': 'the logits are those of the last layer',
    'num_beam_groups': _BEAM_SEARCH,
    'diversity_penalty': _BEAM_SEARCH,
    'constraints': _BEAM_SEARCH,
    'force_words_ids': f'{_BEAM_SEARCH}; sequence_bias makes words likelier',
    'penalty_alpha': 'contrastive search does not exist here; repetition_penalty and presence_penalty reduce '
    'repetition',
    'encoder_repetition_penalty': 'the model has no encoder of texts; repetition_penalty concerns the prompt '
    'too',
    'encoder_no_repeat_ngram_size': 'the model has no encoder of texts; no_repeat_ngram_size concerns the '
    'prompt too',
    'watermarking_config': f'watermarks do not exist here; {_LOGITS}',
    'best_of': 'num_beams searches for likely answers, and num_return_sequences draws several',
    # under another name
    'do_sample': 'a temperature above 0 samples, and 0 selects the most likely token',
    'eos_token_id': 'eos holds the ids that end an answer',
    'stop_token_ids': 'eos holds the ids that end an answer',
    'ignore_eos': 'eos=[] ends no answer before max_new_tokens',
    'stop_strings': 'stop holds the strings that end an answer',
    'stop_sequences': 'stop holds the strings that end an answer',
    'stopping_criteria': 'stop, eos and max_time end answers; a loop over stream can end at any token',
    'include_stop_str_in_output': 'keep_stop=True keeps the stop string in the text',
    'max_length': _COUNTS.format('max_new_tokens'),
    'max_tokens': _COUNTS.format('max_new_tokens'),
    'max_completion_tokens': _COUNTS.format('max_new_tokens'),
    'min_length': _COUNTS.format('min_new_tokens'),
    'min_tokens': _COUNTS.format('min_new_tokens'),
    'n': 'num_return_sequences is the number of answers to each prompt',
    'use_beam_search': 'num_beams is the number of beams',
    'beam_width': 'num_beams is the number of beams',
    'bad_words': 'bad_words_ids holds the ids of each word',
    'allowed_token_ids': _LOGITS,
    'logits_processor': _LOGITS,
    'logits_processors': _LOGITS,
    'prefix_allowed_tokens_fn': _LOGITS,
    'top_logprobs': 'logprobs is the number of likeliest tokens that are reported',
    'return_dict_in_generate': f'generate always returns a Generation; {_REPORTED}',
    'output_scores': _REPORTED,
    'output_logits': _REPORTED,
    'streamer': 'vj.stream yields tokens as they are generated',
    'tokenizer': 'processor= turns tokens into the text in which stop strings are found',
    'random_seed': 'seed is the random seed',
    'use_cache': 'the cache of keys and values is always used',
    'pad_token_id': "it is that of the model's config",
    'bos_token_id': 'the processor begins each prompt with it',
}


def explain(name: str, known: Sequence[str]) -> str:
    """Why `name` is not a setting: the reason of REFUSED, or the known name that is most like it, or all."""
    written = name.replace('-', '_')
    if written in REFUSED:
        return f'{brief(name)[1:-1]} is not a setting: {REFUSED[written]}'
    if nearest := difflib.get_close_matches(written[:80], known, 1):
        return f'{brief(name)[1:-1]} is not a setting: did you mean {nearest[0]}?'
    return f'{brief(name)} is not a setting: they are {", ".join(known)}'
