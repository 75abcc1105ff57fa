"""Which form each function of transformers' models has that rotates q and k (5.24, models/*/modeling_*.py)."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from pyrope.compat.transformers import _forms as forms
from pyrope.compat.transformers._forms import COMPLEX, NEIGHBOURS, ONCE, Form

PLAIN, INTERLEAVE, VISION = "apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave", "apply_rotary_pos_emb_vision"


class Family(NamedTuple):
    """Models that have the same function."""

    function: str
    make: Callable[[Form], Callable[..., Any]]
    form: Form
    packages: str  # of transformers.models


HEADS = Form(rest=False)
PART = Form(dense=True)
PAIRS = Form("gptj", NEIGHBOURS, rest=False)
AS_HALVES = Form("gptj", rest=False, dense=True, out_pairing="neox")
COMPLEX_PAIRS = Form("gptj", COMPLEX, rest=False)

# fmt: off
FAMILIES = (
    Family(PLAIN, forms.q_and_k, HEADS, """
        afmoe apertus apertus1p5 arcee aria axk1 axk2 beam bitnet chameleon cohere_compass cosmos3_edge csm cwm
        dbrx deepseek_ocr2 deepseek_v3 deepseek_v32 dia diffllama doge dory dots1 embedding_gemma2 emu3 esm esmc
        esmfold2 eurobert evolla exaone4 exaone4_5 exaone_moe falcon falcon_h1 flex_olmo flint gemma gemma2
        gemma3 glm4_moe_lite gpt_neox_japanese gradium_phonon_tts granite granite4_vision granite_docling
        granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared gte higgs_audio_v2 hrm_text
        hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax idefics jais2 jamba jetmoe jina_embeddings_v3
        kolibri1 kyutai_speech_to_text lara_mini lasr lfm2 lfm2_moe lfm3 llama mellum mimi minicpm3 minimax
        ministral ministral3 mistral mistral4 mixtral mllama modernbert modernbert_decoder molmo2 moshi
        muse_glimmer muse_spark nemotron_asr_streaming nemotron_h neucodec nomic_bert olmo olmo2 olmo3
        olmo_hybrid olmoe paddleocr_vl parakeet persimmon phi phimoe pixtral pocket_tts
        pocket_tts_audio_tokenizer qwen2 qwen2_5_omni qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_moe
        qwen3_omni_moe qwen3_vl qwen3_vl_moe seed_oss smollm3 solar_open stablelm starcoder2 t5gemma t5gemma2
        timesfm2_5 ultrabert unlimited_ocr vaultgemma voxtral_realtime xcodec2 youtu zamba2"""),
    Family(PLAIN, forms.q_and_k, PART, """
        bamba dots3_note glm4_moe glm4v_moe glm_image gpt_neox laguna mimo_v2_flash minimax_m2 minimax_m3_vl
        nemotron neomme phi3 phi4_multimodal qwen3_5 qwen3_5_moe qwen3_next recurrent_gemma step3p7 zaya"""),
    Family(PLAIN, forms.with_position_ids, PART, "glmasr nemotron3_5_transcribe nemotron3_diarization"),
    Family(PLAIN, forms.k_left_out, PART, "qwen4_exp"),
    Family(PLAIN, forms.q_at_the_end, HEADS, "muse_glimmer_assistant"),
    Family(PLAIN, forms.q_k_and_v, HEADS, "clvp"),
    Family(PLAIN, forms.patches, HEADS, "dinov3_vit eomt_dinov3 sapiens2"),
    Family(PLAIN, forms.one_tensor, HEADS, "diffusion_gemma gemma3n gemma4 gemma4_unified"),
    Family(PLAIN, forms.one_tensor, Form("gptj", ONCE, dense=True, last=True), "deepseek_v4"),
    Family(PLAIN, forms.sin_first, Form("gptj", ONCE, rest=False), "codegen gptj"),
    Family(PLAIN, forms.q_and_k, PAIRS, """
        blt cohere cohere2 cohere2_moe efficientloftr ernie4_5_vl_moe lightglue"""),
    Family(PLAIN, forms.q_and_k, Form("gptj", NEIGHBOURS, dense=True), "glm4v glm_ocr"),
    Family(PLAIN, forms.q_and_k, Form("gptj", rest=False), """
        ernie4_5 ernie4_5_moe helium hy_v4_vl"""),
    Family(PLAIN, forms.q_and_k, Form("gptj", dense=True), "glm glm4 moonshine moonshine_streaming"),
    Family(PLAIN, forms.q_and_k, Form("gptj", rest=False, dense=True), "pe_audio pe_audio_video pe_video"),
    Family(PLAIN, forms.q_and_k, Form("neox", ONCE, rest=False, dense=True), "gpt_oss"),
    Family(PLAIN, forms.q_and_k, Form("gptj", ONCE, rest=False, dense=True), "openai_privacy_filter"),
    Family(PLAIN, forms.q_and_k, Form(rest=False, backward=True), "nanochat"),
    Family(INTERLEAVE, forms.with_position_ids, AS_HALVES, """
        axk1 axk2 bailing_hybrid deepseek_v3 deepseek_v32 dots3_note glm4_moe_lite glm_moe_dsa longcat_flash
        mistral4 youtu"""),
    Family(INTERLEAVE, forms.k_optional, AS_HALVES, "mistral_large4"),
    Family(VISION, forms.vision, HEADS, """
        cohere_compass dots3_note ernie4_5_vl_moe exaone4_5 glm4v glm4v_moe glm5_next glm_ocr kimi_k25 lfm3_vl
        mlcd muse_glimmer muse_spark paddleocr_vl qwen2_5_omni qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe
        qwen3_omni_moe qwen3_vl qwen3_vl_moe qwen4_exp step3p7 video_llama_3"""),
    Family(VISION, forms.vision, PART, "minimax_m3_vl"),
    Family(VISION, forms.vision, PAIRS, "inkling2"),
    Family("apply_rotary_pos_emb_2d", forms.two_dimensions, PAIRS, "sam3"),
    Family("apply_rotary_emb", forms.complex_in_front, COMPLEX_PAIRS, "llama4"),
    Family("apply_rotary_emb", forms.complex_behind, COMPLEX_PAIRS, "deepseek_v2"),
)
# fmt: on


# Models that do more with cos and sin than to pass them on.
TABLES = frozenset(("clvp", "deepseek_v4", "minimax_m3_vl", "muse_glimmer_assistant"))


@cache
def functions(package: str) -> dict[str, Callable[..., Any]]:
    """The functions of ``transformers.models.<package>`` that rotate q and k, by name, as pyrope computes them.

    Arguments, defaults and the strides of results are those of the original. Empty: a package that is not known.
    """
    return {family.function: family.make(family.form) for family in FAMILIES if package in family.packages.split()}
