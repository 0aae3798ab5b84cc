"""Write actions, built from clauses."""

from chalicelib.store.expressions import Clause, delete, number, put, update

KEY = {"id": {"S": "a"}}


def test_an_update_combines_its_clauses_by_keyword() -> None:
    first = Clause(set=("a = :a",), remove=("b",), values={":a": number(1)})
    second = Clause(set=("#c = :c",), add=("d :d",), names={"#c": "c"}, values={":c": number(2)})
    third = Clause(delete=("e :e",), values={":d": number(3), ":e": {"SS": ["x"]}})
    assert update("table", KEY, first, second, third) == {
        "Update": {
            "TableName": "table",
            "Key": KEY,
            "UpdateExpression": "SET a = :a, #c = :c REMOVE b ADD d :d DELETE e :e",
            "ExpressionAttributeNames": {"#c": "c"},
            "ExpressionAttributeValues": {
                ":a": {"N": "1"},
                ":c": {"N": "2"},
                ":d": {"N": "3"},
                ":e": {"SS": ["x"]},
            },
        }
    }


def test_all_conditions_must_hold_and_a_failed_one_returns_the_item() -> None:
    either = Clause(when=("attribute_not_exists(a) OR a < b",))
    both = Clause(when=("attribute_exists(c)", "d = e"))
    action = delete("table", KEY, either, both)["Delete"]
    assert action["ConditionExpression"] == (
        "(attribute_not_exists(a) OR a < b) AND (attribute_exists(c)) AND (d = e)"
    )
    assert action["ReturnValuesOnConditionCheckFailure"] == "ALL_OLD"


def test_an_action_without_conditions_has_no_parameters_for_them() -> None:
    assert put("table", KEY) == {"Put": {"TableName": "table", "Item": KEY}}
    assert delete("table", KEY) == {"Delete": {"TableName": "table", "Key": KEY}}
