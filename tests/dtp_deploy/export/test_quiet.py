import logging
import sys
import warnings

import pytest

from dtp_deploy.export.quiet import first_line, held_back


def test_logs_warnings_and_prints_are_held_back_and_collected_once(capfd, caplog):
    with held_back() as said:
        logging.getLogger("torch.onnx").warning("node %d is odd", 3)
        logging.getLogger("onnxscript.optimizer").error("cannot fold")
        logging.getLogger("torch.onnx").warning("torchvision is not installed. Skipping torchvision::nms")
        logging.getLogger("torch.onnx").info("all is well")
        warnings.warn("precision lost", stacklevel=1)
        warnings.warn("precision lost", stacklevel=1)
        warnings.warn("will be removed", FutureWarning, stacklevel=1)
        print("a graph")
        print("a graph", file=sys.stderr)
    assert said == ["node 3 is odd", "cannot fold", "precision lost"]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_logger_with_a_handler_of_its_own_is_held_back_and_gets_it_back(capfd):
    logger = logging.getLogger("torch.of_a_test")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with pytest.raises(ZeroDivisionError), held_back() as said:
            logger.warning("held back") or 1 / 0
        assert said == ["held back"]
        assert logger.handlers == [handler]
        logger.warning("shown again")
        assert capfd.readouterr().err == "shown again\n"
    finally:
        logger.removeHandler(handler)


def test_other_loggers_are_left_alone(caplog):
    with held_back() as said:
        logging.getLogger("mine").warning("shown")
    assert said == []
    assert caplog.messages == ["shown"]


def test_first_line_is_short_plain_and_never_empty():
    assert first_line(ValueError("\n\x1b[96mno such\x1b[0m operator\nat node 3")) == "ValueError: no such operator"
    assert first_line(KeyError()) == "KeyError: no message"
