// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

interface IEscrow {
    function lock(bytes32, address, address, uint256, bytes32, bytes32, uint40, bytes32) external;
    function commit(address, bytes32, bytes32) external;
    function abort(address, bytes32, bytes32) external;
}

/// @title Tokens that misbehave, one way at a time, for the escrow's tests. Anybody may mint.
contract EvilToken {
    enum Vice {
        NONE,
        RETURNS_FALSE,
        RETURNS_NOTHING,
        RETURNS_TWO,
        RETURNS_SHORT,
        KEEPS_FEE,
        MOVES_NOTHING,
        REVERTS,
        BURNS_GAS,
        RETURNS_FLOOD,
        REENTERS_COMMIT,
        REENTERS_ABORT,
        REENTERS_LOCK
    }

    Vice public vice;
    mapping(address => uint256) public balanceOf;
    bool public reentered;
    IEscrow private escrow;
    address private payer;
    bytes32 private id;
    bytes32 private secret;

    function mint(address to, uint256 value) external {
        balanceOf[to] += value;
    }

    function become(Vice vice_) external {
        vice = vice_;
    }

    function aim(IEscrow escrow_, address payer_, bytes32 id_, bytes32 secret_) external {
        escrow = escrow_;
        payer = payer_;
        id = id_;
        secret = secret_;
    }

    function approve(address, uint256) external pure returns (bool) {
        return true;
    }

    function transfer(address to, uint256 value) external returns (bool) {
        return moveAs(msg.sender, to, value);
    }

    function transferFrom(address from, address to, uint256 value) external returns (bool) {
        return moveAs(from, to, value);
    }

    function moveAs(address from, address to, uint256 value) private returns (bool) {
        if (vice == Vice.REVERTS) revert("no");
        if (vice == Vice.BURNS_GAS) {
            while (true) {}
        }
        if (vice == Vice.REENTERS_COMMIT) {
            try escrow.commit(payer, id, secret) {
                reentered = true;
            } catch {}
        }
        if (vice == Vice.REENTERS_ABORT) {
            try escrow.abort(payer, id, secret) {
                reentered = true;
            } catch {}
        }
        if (vice == Vice.REENTERS_LOCK) {
            try escrow.lock(id, address(this), from, 1, id, secret, 0, id) {
                reentered = true;
            } catch {}
        }
        if (vice != Vice.MOVES_NOTHING) {
            balanceOf[from] -= value;
            balanceOf[to] += vice == Vice.KEEPS_FEE ? value - 1 : value;
        }
        if (vice == Vice.RETURNS_FALSE) return false;
        if (vice == Vice.RETURNS_NOTHING) {
            assembly {
                return(0, 0)
            }
        }
        if (vice == Vice.RETURNS_TWO) {
            assembly {
                mstore(0, 2)
                return(0, 32)
            }
        }
        if (vice == Vice.RETURNS_SHORT) {
            assembly {
                mstore(0, not(0))
                return(0, 1)
            }
        }
        if (vice == Vice.RETURNS_FLOOD) {
            assembly {
                mstore(0, 1)
                return(0, 100000)
            }
        }
        return true;
    }
}
