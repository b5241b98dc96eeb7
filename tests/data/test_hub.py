"""The stand-in for the Hub: the unmodified clients read from it as from the Hub, and are refused in its words."""

import http.client
from types import SimpleNamespace

import pytest
from hub import Hub, child
from hub.clients import CHAT, GEMMA, PYTHIA, TEXT

PAIRS = {
    "EleutherAI/pythia-70m-deduped": ("GPTNeoXForCausalLM", 6, "float16", False),
    "EleutherAI/pythia-160m-deduped": ("GPTNeoXForCausalLM", 12, "float16", False),
    "openai-community/gpt2": ("GPT2LMHeadModel", 12, "float32", True),
    "openai-community/gpt2-medium": ("GPT2LMHeadModel", 24, "float32", True),
    "google/gemma-2-2b": ("Gemma2ForCausalLM", 26, "bfloat16", True),
    "google/gemma-2-9b": ("Gemma2ForCausalLM", 42, "bfloat16", True),
    "google/gemma-2-2b-it": ("Gemma2ForCausalLM", 26, "bfloat16", True),
    "google/gemma-2-9b-it": ("Gemma2ForCausalLM", 42, "bfloat16", True),
    "google/gemma-3-270m": ("Gemma3ForCausalLM", 18, "bfloat16", True),
    "google/gemma-3-1b-pt": ("Gemma3ForCausalLM", 26, "bfloat16", True),
    "HuggingFaceTB/SmolLM2-135M": ("LlamaForCausalLM", 30, "bfloat16", True),
    "HuggingFaceTB/SmolLM2-360M": ("LlamaForCausalLM", 32, "bfloat16", True),
    "Qwen/Qwen3-0.6B-Base": ("Qwen3ForCausalLM", 28, "bfloat16", True),
    "Qwen/Qwen3-1.7B-Base": ("Qwen3ForCausalLM", 28, "bfloat16", True),
}
TOKENIZERS = {
    "pythia": "GPTNeoXTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gemma": "GemmaTokenizer",
    "SmolLM2": "GPT2Tokenizer",
    "Qwen3": "Qwen2Tokenizer",
}
SMOLLM_CHAT = "HuggingFaceTB/SmolLM2-135M-Instruct"


def run(what, environment):
    """What `hub.clients` found, in a process of its own."""
    return child(environment, "-m", "hub.clients", what)


@pytest.fixture(scope="module")
def online(hub, home):
    """What transformers, transformer_lens and datasets found on the Hub."""
    return run("online", hub.environment(home))


@pytest.fixture(scope="module")
def downloads(hub_root, tmp_path_factory):
    """What huggingface_hub found on one with a gated model and a second branch, and what it asked for."""
    with Hub(hub_root, gated={GEMMA: {"hf_friend"}}, revisions={PYTHIA: {"step1000"}}) as server:
        found = run("downloads", server.environment(tmp_path_factory.mktemp("downloads")))
        return SimpleNamespace(**found, log=server.requests)


@pytest.mark.parametrize("name", PAIRS)
def test_models_are_of_the_real_architectures(online, name):
    found = online[name]
    kind, layers, dtype, tied = PAIRS[name]
    assert (found["class"], found["layers"], found["dtype"], found["tied"]) == (kind, layers, f"torch.{dtype}", tied)
    assert found["stand_in"] is True
    assert found["spread"] > 1 and found["largest"] < 30  # far from uniform, and Gemma's below its cap


def test_caps_matter(online):
    largest, change = online["caps"]
    assert largest > 15 and change > 0.1


def test_tokenizers_are_of_the_real_classes(online):
    kinds = {name: TOKENIZERS[name.split("/")[1].split("-")[0]] for name in PAIRS}
    assert {name: online[name]["tokenizer"] for name in PAIRS} == kinds
    assert all(online[name]["text"] == TEXT for name in PAIRS)


def test_special_tokens_stand_where_they_do_in_reality(online):
    for name in PAIRS:
        found, vocabulary = online[name], online[name]["vocabulary"]
        if "gemma" in name:
            places = [vocabulary[token] for token in ("<pad>", "<eos>", "<bos>", "<unk>")]
            assert (places, found["bos"], found["eos"], found["first"]) == ([0, 1, 2, 3], 2, 1, 2)
        else:
            end = {"p": 0, "g": len(vocabulary) - 1, "S": 0, "Q": len(vocabulary) - 3}[name.split("/")[1][0]]
            assert vocabulary["<|endoftext|>"] == found["eos"] == end != found["first"]
            assert found["bos"] == (None if "Qwen" in name else end)
    chat, vocabulary = online[SMOLLM_CHAT], online[SMOLLM_CHAT]["vocabulary"]
    assert (chat["bos"], chat["eos"]) == (1, 2) == (vocabulary["<|im_start|>"], vocabulary["<|im_end|>"])
    assert chat["ends"] == [2] and vocabulary == online["HuggingFaceTB/SmolLM2-135M"]["vocabulary"]


def test_models_of_a_family_share_a_tokenizer(online):
    vocabularies = {name: online[name]["vocabulary"] for name in PAIRS}
    small, large = list(PAIRS)[::2], list(PAIRS)[1::2]
    assert [vocabularies[name] for name in small] == [vocabularies[name] for name in large]


def test_gemma_chats(online):
    assert online["chat"] == (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHo<end_of_turn>\n<start_of_turn>model\n"
    )
    assert online[CHAT]["ends"] == [1, online[CHAT]["vocabulary"]["<end_of_turn>"]]
    assert online[GEMMA]["ends"] == 1


def test_transformer_lens_reads_from_the_hub(online):
    assert max(online[name]["bridge"] for name in (PYTHIA, GEMMA)) < 1e-3


def test_data_set_streams_as_it_loads(online):
    assert online["streamed"] == online["fitted"][:40]
    assert online["skipped to"] == online["evaluated"][3]


def test_texts_are_long_and_some_empty(online):
    texts = online["fitted"] + online["evaluated"]
    filled = [text for text in texts if text.strip()]
    assert (online["rows"], len(texts), len(filled)) == (181_000, 2_000, 1_960)
    assert online["features"] == "{'text': Value('string')}"
    assert 250 < sum(len(text.split()) for text in filled) / len(filled) < 350
    assert len(set(filled)) == len(filled)
    assert set(texts) - set(filled) == {"", " \n\n "}


def test_everything_comes_from_the_cache_afterwards(online, hub, home):
    before = len(hub.requests)
    found = run("offline", hub.environment(home, HF_HUB_OFFLINE="1"))
    assert {name: found[name] for name in (PYTHIA, GEMMA)} == {name: online[name]["sum"] for name in (PYTHIA, GEMMA)}
    assert found["rows"] == online["rows"]
    assert len(hub.requests) == before


def test_weights_come_in_shards(online, hub, hub_root):
    for name in PAIRS:
        shards = sorted(path.name for path in (hub_root / "models" / name).glob("*.safetensors"))
        assert (len(shards) > 1) == ("gemma-2" in name)
        assert all(("GET", f"/{name}/resolve/main/{shard}", 200) in as_main(hub.requests) for shard in shards)


def as_main(requests):
    """Requests with `main` in the place of a commit."""
    parts = [(method, path.split("/"), status) for method, path, status in requests]
    return {
        (method, "/".join("main" if len(part) == 40 else part for part in path), status)
        for method, path, status in parts
    }


def test_small_enough(hub_root):
    assert sum(path.stat().st_size for path in hub_root.rglob("*") if path.is_file()) < 13_000_000


def test_downloads_resume_where_they_stopped(downloads):
    assert downloads.resumed and downloads.end
    path = f"/{PYTHIA}/resolve/main/model.safetensors"
    statuses = [status for method, asked, status in downloads.log if (method, asked) == ("GET", path)]
    assert statuses[:2] == [200, 206]  # the whole, then the rest of it


def test_commits_and_branches(downloads):
    assert len(set(downloads.commits)) == 1 and len(downloads.commits[0]) == 40
    assert downloads.by_commit
    assert downloads.snapshot == downloads.siblings and "model.safetensors" in downloads.siblings


def test_listings(downloads, hub_root):
    shards = [f"plain_text/train-0000{number}-of-00002.parquet" for number in (0, 1)]
    tree = [["RepoFile", "README.md"], ["RepoFolder", "plain_text"], *(["RepoFile", shard] for shard in shards)]
    assert downloads.tree == [[*entry, "Add files"] for entry in tree]
    assert downloads.top == ["README.md", "plain_text"]
    sizes = {
        name: (hub_root / "datasets" / "Skylion007" / "openwebtext" / name).stat().st_size
        for name in ("README.md", shards[0])
    }
    assert downloads.paths == [
        ["README.md", sizes["README.md"], False],
        ["plain_text", None, False],
        [shards[0], sizes[shards[0]], True],
    ]


@pytest.mark.parametrize(
    ("label", "error", "status", "words"),
    [
        ("no repository", "RepositoryNotFoundError", 401, "Invalid username or password."),
        ("no repository for a reader", "RepositoryNotFoundError", 404, "Repository Not Found"),
        ("no file", "RemoteEntryNotFoundError", 404, "Entry Not Found"),
        ("no revision", "RevisionNotFoundError", 404, "Invalid rev id: none"),
        ("no commit", "RevisionNotFoundError", 404, "Invalid rev id: 0000"),
        ("no folder", "RemoteEntryNotFoundError", 404, 'none does not exist on "main"'),
        ("gated", "GatedRepoError", 401, "Please log in."),
        ("gated snapshot", "GatedRepoError", 401, "Please log in."),
        ("gated for a stranger", "GatedRepoError", 403, "you are not in the authorized list"),
    ],
)
def test_refusals(downloads, label, error, status, words):
    found = downloads.errors[label]
    assert found[:2] == [error, status] and words in found[2]


def test_gated_repositories_open_to_their_friends(downloads):
    assert downloads.errors["gated for a friend"] is None
    assert (downloads.gated, downloads.whoami) == ([False, "manual"], "reader")


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return SimpleNamespace(status=answer.status, headers=answer.headers, content=content)


@pytest.fixture
def small(tmp_path):
    """A server of one file of ten bytes, and a way to ask for it."""
    folder = tmp_path / "models" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "x.bin").write_bytes(b"0123456789")
    with Hub(tmp_path) as server:

        def get(path="/a/b/resolve/main/x.bin", method="GET", **headers):
            return ask(server, path, method, **headers)

        yield SimpleNamespace(ask=get, folder=folder, log=server.requests)


@pytest.mark.parametrize(
    ("asked", "status", "content", "described"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=10-", 416, None, "bytes */10"),
    ],
)
def test_ranges(small, asked, status, content, described):
    answer = small.ask(Range=asked)
    assert (answer.status, answer.headers["Content-Range"]) == (status, described)
    assert content is None or (answer.content, answer.headers["Content-Length"]) == (content, str(len(content)))


def test_head_tells_what_get_would_send(small):
    head, get = small.ask(method="HEAD"), small.ask()
    told = ("Content-Length", "ETag", "X-Repo-Commit", "X-Linked-Size", "X-Linked-ETag", "Accept-Ranges")
    assert [head.headers[name] for name in told] == [get.headers[name] for name in told]
    assert head.headers["Content-Length"] == head.headers["X-Linked-Size"] == "10"
    assert (head.content, get.content) == (b"", b"0123456789")
    sha256 = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
    assert head.headers["ETag"] == head.headers["X-Linked-ETag"] == f'"{sha256}"'


def test_small_files_have_the_hash_that_git_gives_them(small):
    (small.folder / "x.txt").write_bytes(b"hello\n")
    assert small.ask("/a/b/resolve/main/x.txt").headers["ETag"] == '"ce013625030ba8dba906f756967f9e9ca394464a"'


def test_a_changed_file_is_a_new_commit(small):
    before = small.ask().headers
    (small.folder / "x.bin").write_bytes(b"9876543210!")
    after = small.ask()
    assert after.content == b"9876543210!" and after.headers["ETag"] != before["ETag"]
    old, new = before["X-Repo-Commit"], after.headers["X-Repo-Commit"]
    assert old != new and small.ask(f"/a/b/resolve/{new}/x.bin").status == 200
    assert small.ask(f"/a/b/resolve/{old}/x.bin").headers["X-Error-Code"] == "RevisionNotFound"


def test_only_what_lies_in_the_folder_is_sent(small):
    (small.folder.parent.parent.parent / "secret").write_text("secret")
    for up in ("../../../", "..%2F..%2F..%2F"):
        assert small.ask(f"/a/b/resolve/main/{up}secret").headers["X-Error-Code"] == "EntryNotFound"
    assert small.ask("/a/../resolve/main/b/x.bin").headers["X-Error-Code"] == "RepoNotFound"


def test_models_and_data_sets_of_one_name_are_two_repositories(tmp_path):
    for kind in ("models", "datasets"):
        (tmp_path / kind / "a" / "b").mkdir(parents=True)
        (tmp_path / kind / "a" / "b" / "x.txt").write_text(kind)
    with Hub(tmp_path, gated={"datasets/a/b": {"friend"}}, revisions={"a/b": {"refs/pr/1"}}) as server:
        assert ask(server, "/a/b/resolve/refs%2Fpr%2F1/x.txt").content == b"models"
        shut = ask(server, "/datasets/a/b/resolve/main/x.txt")
        assert (shut.status, shut.headers["X-Error-Code"]) == (401, "GatedRepo")
        friend = {"Authorization": "Bearer friend"}
        assert ask(server, "/datasets/a/b/resolve/main/x.txt", **friend).content == b"datasets"
        other = ask(server, "/datasets/a/b/resolve/refs%2Fpr%2F1/x.txt", **friend)
        assert (other.status, other.headers["X-Error-Code"]) == (404, "RevisionNotFound")


def test_requests_are_on_record(small):
    small.ask()
    small.ask("/other?x=1", "POST")
    assert small.log == [("GET", "/a/b/resolve/main/x.bin", 200), ("POST", "/other", 404)]
