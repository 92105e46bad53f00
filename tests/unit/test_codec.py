import csv
import io
import json

import pytest
from multidict import CIMultiDict

from image_classifier.contract.errors import ImageError, NotAcceptable, RequestError, TooLarge, UnsupportedMedia
from image_classifier.contract.wire import DEFAULT_TOP_K, MAX_BODY_BYTES, REQUEST_TYPES
from image_classifier.serving.codec import encode, encode_error, encode_internal_error, parse_request

RANKING = [('a, "b"', 0.75), ("Löwenzahn", 0.2), ("日本", 0.05)]


@pytest.mark.parametrize(
    "content_type",
    [
        *REQUEST_TYPES,
        "",
        "image/svg+xml",
        "image/heic",
        "IMAGE/JPEG",
        "image/jpeg; charset=utf-8",
        " image/png ;x=é",
        "application/x-image;",
    ],
)
def test_image_types_are_accepted_in_any_case_and_with_parameters(content_type):
    assert parse_request({"content-type": content_type}, b"x").image == b"x"


def test_a_request_without_headers_is_bytes_answered_with_json_and_five_classes():
    request = parse_request({}, bytearray(b"x"))
    assert (request.image, request.response_type, request.top_k) == (b"x", "application/json", DEFAULT_TOP_K)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/json", "application/x-npy", "image", "image/", "jpé", "multipart/form-data"],
)
def test_other_content_types_are_415_with_the_ones_that_are_taken(content_type):
    with pytest.raises(UnsupportedMedia) as caught:
        parse_request({"Content-Type": content_type}, b"x")
    assert caught.value.http_status == 415
    assert "image/jpeg" in caught.value.hint


def test_what_curl_calls_a_form_is_an_image_if_it_begins_as_one():
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert parse_request(form, b"\xff\xd8\xff\xe0rest").image == b"\xff\xd8\xff\xe0rest"
    with pytest.raises(UnsupportedMedia):
        parse_request(form, b"a=1&b=2")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/*", "text/csv"),
        ("TEXT/CSV; header=absent", "text/csv"),
        ("application/json;q=0.1, text/csv;q=0.9", "text/csv"),
        ("text/csv;q=0.1, application/json;q=0.9", "application/json"),
        ("text/html, text/csv", "text/csv"),
        ("text/csv, */*", "text/csv"),
        ("application/json;q=0, */*", "text/csv"),
        ("text/csv;q=nonsense, application/json", "application/json"),
        ("text/html, image/gif, */*;q=0.2", "application/json"),
        ("application/jsonlines", "application/jsonlines"),
        ("application/x-jsonlines, text/csv;q=0.5", "application/x-jsonlines"),
        ("application/x-npy, application/jsonl;q=0.1", "application/jsonl"),
    ],
)
def test_the_accept_header_decides_the_response_type(accept, expected):
    assert parse_request({"Accept": accept}, b"x").response_type == expected


@pytest.mark.parametrize(
    "accept",
    ["text/html", "application/x-npy", "application/xml;q=0.9", "*/*;q=0", "json", "日本", "application/json;q=-1"],
)
def test_an_accept_header_without_json_csv_or_lines_is_406(accept):
    with pytest.raises(NotAcceptable) as caught:
        parse_request({"accept": accept}, b"x")
    assert caught.value.http_status == 406


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Top-K": "3"}, 3),
        ({"x-top-k": " 12 "}, 12),
        ({"X-Amzn-SageMaker-Custom-Attributes": "top_k=4"}, 4),
        ({"x-amzn-sagemaker-custom-attributes": "trace=7, Top_K = 2 ,x"}, 2),
        ({"X-Top-K": "1", "X-Amzn-SageMaker-Custom-Attributes": "top_k=9"}, 1),
        ({"X-Amzn-SageMaker-Custom-Attributes": "c=1"}, DEFAULT_TOP_K),
    ],
)
def test_top_k_comes_from_the_header_or_the_custom_attributes(headers, expected):
    assert parse_request(headers, b"x").top_k == expected


def test_headers_that_come_twice_are_one_list():
    given = [("Accept", "image/webp"), ("accept", "text/csv"), ("X-Amzn-SageMaker-Custom-Attributes", "trace=1")]
    headers = CIMultiDict([*given, ("X-Amzn-SageMaker-Custom-Attributes", "top_k=2")])
    for each in (headers, CIMultiDict(reversed(list(headers.items())))):
        request = parse_request(each, b"x")
        assert (request.response_type, request.top_k) == ("text/csv", 2)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "", "many", "٣", "1" * 5000, "0x3"])
def test_a_top_k_that_is_no_positive_number_is_400(value):
    with pytest.raises(RequestError, match="top_k") as caught:
        parse_request({"X-Top-K": value}, b"x")
    assert caught.value.http_status == 400


@pytest.mark.parametrize("body", [b"", bytearray(), None, "text", {"a": 1}])
def test_a_request_without_bytes_is_400(body):
    with pytest.raises(RequestError, match="no body"):
        parse_request({}, body)


def test_the_largest_body_is_taken_and_one_byte_more_is_413():
    assert len(parse_request({}, bytes(MAX_BODY_BYTES)).image) == MAX_BODY_BYTES
    with pytest.raises(TooLarge) as caught:
        parse_request({}, bytes(MAX_BODY_BYTES + 1))
    assert caught.value.http_status == 413


def test_json_carries_labels_of_any_script():
    response = encode(RANKING, model="abc", response_type="application/json")
    assert (response.status, response.content_type, response.phrase) == (200, "application/json", "OK")
    document = json.loads(response.body)
    assert document["model"] == "abc"
    assert [(p["label"], p["probability"]) for p in document["predictions"]] == RANKING


@pytest.mark.parametrize("response_type", ["application/json", "text/csv"])
@pytest.mark.parametrize("probability", [float("nan"), float("inf")])
def test_no_probability_that_is_not_finite_is_written(response_type, probability):
    with pytest.raises(ValueError, match="not a number"):
        encode([("a", 0.5), ("b", probability)], model="abc", response_type=response_type)


def test_csv_quotes_labels_so_that_they_read_back():
    response = encode(RANKING, model="abc", response_type="text/csv")
    assert response.content_type == "text/csv; charset=utf-8"
    rows = list(csv.reader(io.StringIO(response.body.decode())))
    assert [(label, float(p)) for label, p in rows] == RANKING


def test_an_error_is_json_with_sentence_hint_and_an_ascii_phrase():
    response = encode_error(ImageError("the image is damaged: é", "send another"))
    assert (response.status, response.content_type, response.phrase) == (400, "application/json", "Bad Request")
    assert json.loads(response.body) == {"error": "the image is damaged: é", "hint": "send another"}
    for error in (NotAcceptable("x"), TooLarge("x"), UnsupportedMedia("x")):
        assert encode_error(error).phrase.isascii()


def test_an_internal_error_names_the_request_and_nothing_else():
    response = encode_internal_error("id-1")
    assert response.status == 500
    assert json.loads(response.body)["error"] == "internal error"
    assert "id-1" in json.loads(response.body)["hint"]
