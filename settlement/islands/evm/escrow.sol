// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Conditional holds of ERC-20 tokens: decision escrow and hash-time-lock.
/// @notice A payer locks its own tokens for one payee. A hold ends exactly once (I6): posted with the pre-image of its
/// commit hash, voided with that of its abort hash, whoever shows it, or expired after its deadline if it has one.
///
/// Decision escrow: both hashes, no deadline: no clock decides anything. Hash-time-lock: no abort hash, a deadline.
///
/// A hold is known by (payer, id) and only the payer opens it, so nobody can take another's id. An id is used once, for
/// ever (I7). An abort that overtakes its lock leaves a tombstone for (payer, id, abort hash): a later lock under that
/// abort hash is refused, and nobody who does not know the abort secret can keep a lock out.
///
/// No owner, no pause, no upgrade, no ether, no signature recovery; SHA-256 alone; EVM version london.
contract Escrow {
    enum Standing {
        ABSENT,
        HELD,
        POSTED,
        VOIDED
    }

    struct Hold {
        address payee;
        uint40 deadline; // UNIX seconds; 0 = none
        uint40 endedAt; // UNIX seconds of the block that posted or voided it; 0 = not yet
        Standing standing;
        address token;
        uint256 amount;
        bytes32 commitHash;
        bytes32 abortHash; // 0 = hash-time-lock: only the deadline voids
    }

    uint256 private constant FREE = 1;
    uint256 private constant BUSY = 2;

    mapping(address => mapping(bytes32 => Hold)) private holds;
    mapping(address => mapping(bytes32 => mapping(bytes32 => bool))) private tombstones;

    /// @notice What holds of a token that stand now add up to; the escrow's balance of it is never below (I2).
    mapping(address => uint256) public heldTotal;

    uint256 private gate = FREE;

    /// @dev `ref` is the payment's UETR; it is bound to the hold by this event alone.
    event Locked(
        address indexed payer,
        address indexed payee,
        bytes32 indexed id,
        address token,
        uint256 amount,
        bytes32 commitHash,
        bytes32 abortHash,
        uint40 deadline,
        bytes32 ref
    );
    event Posted(
        address indexed payer, address indexed payee, bytes32 indexed id, address token, uint256 amount, bytes32 secret
    );
    event Voided(
        address indexed payer, address indexed payee, bytes32 indexed id, address token, uint256 amount, bytes32 secret
    );
    event Expired(address indexed payer, address indexed payee, bytes32 indexed id, address token, uint256 amount);
    event Buried(address indexed payer, bytes32 indexed id, bytes32 abortHash);

    error Reentered();
    error TermsInvalid();
    error IdUsed();
    error Tombstoned();
    error HoldUnknown();
    error SecretWrong();
    error AlreadyPosted();
    error AlreadyVoided();
    error DeadlinePassed();
    error DeadlineNotPassed();
    error TokenFailed();
    error AmountNotMoved();

    modifier once() {
        if (gate != FREE) revert Reentered();
        gate = BUSY;
        _;
        gate = FREE;
    }

    /// @notice Hold `amount` of the caller's tokens for `payee`. The caller must have approved this contract for it.
    function lock(
        bytes32 id,
        address token,
        address payee,
        uint256 amount,
        bytes32 commitHash,
        bytes32 abortHash,
        uint40 deadline,
        bytes32 ref
    ) external once {
        if (
            amount == 0 || payee == address(0) || payee == msg.sender || payee == address(this)
                || msg.sender == address(this) || commitHash == bytes32(0) || commitHash == abortHash
                || (abortHash == bytes32(0) && deadline == 0)
        ) revert TermsInvalid();
        if (deadline != 0 && block.timestamp >= deadline) revert DeadlinePassed();
        Hold storage hold = holds[msg.sender][id];
        if (hold.standing != Standing.ABSENT) revert IdUsed();
        if (tombstones[msg.sender][id][abortHash]) revert Tombstoned();
        hold.payee = payee;
        hold.deadline = deadline;
        hold.standing = Standing.HELD;
        hold.token = token;
        hold.amount = amount;
        hold.commitHash = commitHash;
        hold.abortHash = abortHash;
        heldTotal[token] += amount;
        uint256 before = balanceOf(token, address(this));
        move(token, abi.encodeWithSelector(0x23b872dd, msg.sender, address(this), amount)); // transferFrom
        // A token that keeps a fee would leave holds that cannot all be paid.
        if (balanceOf(token, address(this)) != before + amount) revert AmountNotMoved();
        emit Locked(msg.sender, payee, id, token, amount, commitHash, abortHash, deadline, ref);
    }

    /// @notice Post the hold with its commit secret. Repeated, it does nothing.
    function commit(address payer, bytes32 id, bytes32 secret) public once {
        Hold storage hold = holds[payer][id];
        Standing standing = hold.standing;
        if (standing == Standing.ABSENT) revert HoldUnknown();
        if (sha256(abi.encodePacked(secret)) != hold.commitHash) revert SecretWrong();
        if (standing == Standing.POSTED) return;
        if (standing == Standing.VOIDED) revert AlreadyVoided();
        if (hold.deadline != 0 && block.timestamp >= hold.deadline) revert DeadlinePassed();
        hold.standing = Standing.POSTED;
        hold.endedAt = uint40(block.timestamp);
        pay(hold, hold.payee);
        emit Posted(payer, hold.payee, id, hold.token, hold.amount, secret);
    }

    /// @notice Void the hold with its abort secret, or leave a tombstone if no hold under that hash stands.
    /// Repeated, it does nothing. Refused only if the hold is posted.
    function abort(address payer, bytes32 id, bytes32 secret) public once {
        Hold storage hold = holds[payer][id];
        Standing standing = hold.standing;
        bytes32 abortHash = sha256(abi.encodePacked(secret));
        if (standing == Standing.ABSENT || hold.abortHash != abortHash) {
            // Also beside a hold of other hashes: were that one reorganised away, ours must still be kept out.
            if (tombstones[payer][id][abortHash]) return;
            tombstones[payer][id][abortHash] = true;
            emit Buried(payer, id, abortHash);
            return;
        }
        if (standing == Standing.VOIDED) return;
        if (standing == Standing.POSTED) revert AlreadyPosted();
        hold.standing = Standing.VOIDED;
        hold.endedAt = uint40(block.timestamp);
        pay(hold, payer);
        emit Voided(payer, hold.payee, id, hold.token, hold.amount, secret);
    }

    /// @notice Return a hold to its payer at or after its deadline, whoever asks. Repeated, it does nothing.
    function expire(address payer, bytes32 id) external once {
        Hold storage hold = holds[payer][id];
        Standing standing = hold.standing;
        if (standing == Standing.ABSENT) revert HoldUnknown();
        if (standing == Standing.POSTED) revert AlreadyPosted();
        if (standing == Standing.VOIDED) return;
        if (hold.deadline == 0 || block.timestamp < hold.deadline) revert DeadlineNotPassed();
        hold.standing = Standing.VOIDED;
        hold.endedAt = uint40(block.timestamp);
        pay(hold, payer);
        emit Expired(payer, hold.payee, id, hold.token, hold.amount);
    }

    /// @notice Post many; one that cannot be posted stops no other. Read the standings to see which were.
    function commitAll(address[] calldata payers, bytes32[] calldata ids, bytes32[] calldata secrets) external {
        if (payers.length != ids.length || ids.length != secrets.length) revert TermsInvalid();
        for (uint256 i = 0; i < ids.length; i++) {
            try this.commit(payers[i], ids[i], secrets[i]) {} catch {}
        }
    }

    /// @notice Void many; one that cannot be voided stops no other. Read the standings to see which were.
    function abortAll(address[] calldata payers, bytes32[] calldata ids, bytes32[] calldata secrets) external {
        if (payers.length != ids.length || ids.length != secrets.length) revert TermsInvalid();
        for (uint256 i = 0; i < ids.length; i++) {
            try this.abort(payers[i], ids[i], secrets[i]) {} catch {}
        }
    }

    /// @notice Where holds stand; `isBuried` = a tombstone keeps out a hold under that abort hash.
    function lookUp(address[] calldata payers, bytes32[] calldata ids, bytes32[] calldata abortHashes)
        external
        view
        returns (Hold[] memory found, bool[] memory isBuried)
    {
        if (payers.length != ids.length || ids.length != abortHashes.length) revert TermsInvalid();
        found = new Hold[](ids.length);
        isBuried = new bool[](ids.length);
        for (uint256 i = 0; i < ids.length; i++) {
            found[i] = holds[payers[i]][ids[i]];
            isBuried[i] = tombstones[payers[i]][ids[i]][abortHashes[i]];
        }
    }

    /// @dev Effects came before: the hold is ended already when the token is called.
    function pay(Hold storage hold, address to) private {
        address token = hold.token;
        uint256 amount = hold.amount;
        heldTotal[token] -= amount;
        uint256 before = balanceOf(token, to);
        move(token, abi.encodeWithSelector(0xa9059cbb, to, amount)); // transfer
        if (balanceOf(token, to) != before + amount) revert AmountNotMoved(); // I1: all of it or nothing
    }

    /// @dev Tokens return true, or nothing (older ones); false, a failure and no code at all are refusals. At most 32
    /// bytes of the answer are copied, whatever its length.
    function move(address token, bytes memory data) private {
        if (token.code.length == 0) revert TokenFailed();
        bool isDone;
        uint256 size;
        uint256 word;
        assembly ("memory-safe") {
            mstore(0, 0)
            isDone := call(gas(), token, 0, add(data, 32), mload(data), 0, 32)
            size := returndatasize()
            word := mload(0)
        }
        if (!isDone || (size != 0 && (size < 32 || word != 1))) revert TokenFailed();
    }

    function balanceOf(address token, address who) private view returns (uint256 held) {
        bytes memory data = abi.encodeWithSelector(0x70a08231, who); // balanceOf
        bool isDone;
        assembly ("memory-safe") {
            mstore(0, 0)
            isDone := staticcall(gas(), token, add(data, 32), mload(data), 0, 32)
            isDone := and(isDone, gt(returndatasize(), 31))
            held := mload(0)
        }
        if (!isDone) revert TokenFailed();
    }
}
